// The root of a forest of parents, found by path halving.
#pragma once

namespace amwc {

// parent(i) is a reference to the parent of i; roots are their own.
template <class Id, class Parent>
Id find_root(Id i, Parent parent) {
    while (parent(i) != i) i = parent(i) = parent(parent(i));
    return i;
}

}  // namespace amwc
