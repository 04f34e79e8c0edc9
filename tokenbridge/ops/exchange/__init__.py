"""Import of released weights as folders of this project, and export of models with a model card."""
