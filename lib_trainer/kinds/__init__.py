"""The kinds of training, one object each: what is read, checked, trained, written and said. Nobody else knows them."""
