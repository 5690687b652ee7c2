"""The `quire` command. Starts fast: each subcommand imports what it needs when it runs."""
