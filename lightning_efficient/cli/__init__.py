"""The command line: a light dispatcher, LightningCLI with better manners, and the verbs around it."""
