"""The Tagger: layout, what its buttons do, its results as HTML, and the step of the Extras tab."""
