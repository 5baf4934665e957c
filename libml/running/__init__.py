"""What keeps a run alive: its folder, checkpoints, devices and loop."""
