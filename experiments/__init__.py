"""One command an experiment: claims, presets and figures. The only place that prints."""
