"""Token trees: a deterministic token MDP with exact values, policies and credit."""
