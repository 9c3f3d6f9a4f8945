"""Plug-ins that carry the weights of engines: each needs the engine that it is named after."""
