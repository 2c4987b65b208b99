"""Making the images that a method without data learns from: generators, what they are judged by, and pools."""
