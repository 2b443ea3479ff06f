"""Ready configs, one YAML file a network and data set: `prunefn config`."""
