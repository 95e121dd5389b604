"""What every page is made of: the form derived from declared options."""
