"""Wire messages generated from the minimal `.proto` files beside this one (`make proto`)."""
