"""The subcommands of `llm-edge`, one file each."""
