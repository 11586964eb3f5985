"""Ready campaigns, one folder each, and the builders of the models that they merge."""
