"""What people and monitors look at."""
