"""The detection methods: matching and losses, one file each."""
