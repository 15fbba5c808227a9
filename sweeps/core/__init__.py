"""What every other folder knows: errors, secrets, trials, names, commands, how a sweep ends."""
