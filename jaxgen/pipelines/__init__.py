"""What users call from scripts and notebooks: whole jobs over every device, composed from the rooms below."""
