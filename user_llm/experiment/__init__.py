"""An experiment: its data and models (`experiment`, `assembly`), its stages, and its workdir."""
