"""Follow what each optimizer step does to the weights, as stored, while a run goes on."""
