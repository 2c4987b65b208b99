"""What a cascade is: the bundle on disk, the exit rule, and how stages combine. No torch, no runtime."""
