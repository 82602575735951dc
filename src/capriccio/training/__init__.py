"""One trainer for every model of the house: resumable, with progress, on one process or several."""
