"""Plug-ins by which engines carry their weights with weighbridge."""
