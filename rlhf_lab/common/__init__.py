"""The ground floor: flags, files, intervals, plots and shipped assets. Imports nothing else of this package."""
