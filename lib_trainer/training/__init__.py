"""Training: objective, optimizers, precision, the loop, and the run around it. Recipes say what is trained."""
