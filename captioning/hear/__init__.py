"""What is heard in a clip: transcript, speakers, sound levels, onsets of sounds."""
