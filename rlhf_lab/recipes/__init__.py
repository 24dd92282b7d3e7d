"""Settings files that ship with the package, one per experiment."""
