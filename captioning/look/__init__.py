"""What is seen in a clip: picture statistics, and the engines that describe its pictures."""
