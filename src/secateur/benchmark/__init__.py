"""Speed, memory and size of checkpoints and exports, each in a process of its own, in turns."""
