"""Follow what each optimizer step does to the weights, as stored, during a run."""
