"""The training loop and what it trains: SFT and preference objectives."""
