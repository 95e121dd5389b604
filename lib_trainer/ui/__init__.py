"""The pages: gradio only. They know the core's use cases and its view of a run, never a host."""
