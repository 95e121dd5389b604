"""The tab Models: the tools of `lib_trainer/toolbox` as forms, and what they say as HTML."""
