"""What the sensor's bench is made of: captures, runs of whole processes, a live interface, plots."""
