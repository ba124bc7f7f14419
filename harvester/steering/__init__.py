"""The embedded central service: tasks, ask and tell, samplers, REST."""
