"""One file per source format; each returns a `RawDataset`, which `checked` then validates in one place."""
