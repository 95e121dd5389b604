"""Families of models, each one description: what differs between them is data here and no question anywhere else."""
