"""The commands: what each takes, and how what it found is shown."""
