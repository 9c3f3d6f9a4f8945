"""The plug-ins for engines, with the real engines at tiny size."""
