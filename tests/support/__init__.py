"""What tests of the union share: layers from a description, mounts, and pictures of trees."""
