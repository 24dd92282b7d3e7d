"""What an author of the course runs: masters, execution, publishing, tables of the README."""
