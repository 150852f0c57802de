"""Reports: the HTML page, the terminal tables and the model card."""
