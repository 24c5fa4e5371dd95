"""What the command line's specs name: models, weights, images and preprocessing of the user's own."""
