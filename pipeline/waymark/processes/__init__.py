"""What belongs to a process: its signals, its output, its variables, another one that it starts."""
