"""What reacts by itself: sensors, each watching one thing."""
