"""Structure of any network, found by tracing it with torch.fx."""
