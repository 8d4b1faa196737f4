"""What people have: folders in diffusers' layout and repositories of the hub."""
