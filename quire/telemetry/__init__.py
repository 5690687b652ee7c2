"""What a process tells about itself: traces and logs. Nothing leaves the machine unless the environment asks."""
