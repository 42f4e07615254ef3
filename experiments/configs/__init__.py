"""Config files of the main job; each returns a full config from `get_config`."""
