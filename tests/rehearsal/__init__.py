"""The rehearsal of the ImageNet studies: what they fetch, small and made here, served on the loopback interface."""
