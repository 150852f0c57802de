"""What a model is: its family, its layers, how it is loaded and saved."""
