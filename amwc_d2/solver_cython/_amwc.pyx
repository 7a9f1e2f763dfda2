# distutils: language = c++
# cython: language_level=3, wraparound=False, cdivision=True
"""Thin wrapper of the C++ solver: typed, contiguous, checked arrays in; the GIL is released.

All arguments are validated by ``amwc_d2.solver_cython``; nothing is checked here, but the solvers
of grids report node costs that are not finite: they read them all anyway.
"""

from libc.stdint cimport int32_t, uint8_t

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept


cdef extern from "solver.hpp" namespace "amwc" nogil:
    cdef cppclass Grid:
        Grid()
        Grid(const float*, const float*, int, const int32_t*, const int32_t*, int) except +
        const int32_t* group
        const int32_t* links
        size_t joined, apart
        bint forbids

    cdef cppclass Graph:
        const float* node
        const int32_t* edges
        const float* weight
        size_t N, E
        int K

    double grid_objective "amwc::objective"(const Grid&, const int32_t*, const int32_t*)
    double masked_objective "amwc::objective<true>"(const Grid&, const int32_t*, const int32_t*)

    double graph_objective "amwc::objective"(const Graph&, const int32_t*, const int32_t*)

    bint c_all_finite "amwc::all_finite"(const float*, size_t)

    cdef cppclass Solver:
        int (*interrupted)() noexcept nogil
        double time_limit
        double amwc(const Grid&, const uint8_t*, int, bint, int32_t*, int32_t*) except +
        double amwc_graph(const Graph&, const uint8_t*, int, int32_t*, int32_t*) except +
        double multiway(const Grid&, const int32_t*, int32_t*, int32_t*) except +


cdef Grid make_grid(const float[:, ::1] node, const float[::1] edge, const int32_t[:, ::1] offsets,
                    const int32_t[::1] shape) except *:
    cdef int layers = <int>offsets.shape[0]
    return Grid(&node[0, 0], &edge[0] if layers else NULL, <int>node.shape[0], &shape[0],
                &offsets[0, 0] if layers else NULL, layers)


cdef Graph make_graph(const float[:, ::1] node, const int32_t[:, ::1] edges,
                      const float[::1] weight) noexcept nogil:
    cdef Graph graph
    graph.node = &node[0, 0]
    graph.E = weight.shape[0]
    graph.edges = &edges[0, 0] if graph.E else NULL
    graph.weight = &weight[0] if graph.E else NULL
    graph.N = node.shape[0]
    graph.K = <int>node.shape[1]
    return graph


cdef int interrupted() noexcept with gil:
    # A KeyboardInterrupt set here outlives the C++ exception that ends the solve.
    return PyErr_CheckSignals()


cdef class Arena:
    """Working memory of one thread; it is kept from solve to solve."""

    cdef Solver solver

    def __cinit__(self):
        self.solver.interrupted = interrupted

    def amwc(self, const float[:, ::1] node, const float[::1] edge, const int32_t[:, ::1] offsets,
             const int32_t[::1] shape, const int32_t[::1] group, const int32_t[:, ::1] links,
             int joined, bint forbids, const uint8_t[::1] partitionable, int method, bint init,
             double time_limit, int32_t[::1] classes, int32_t[::1] segments):
        """Fills classes and segments; returns the objective, NaN if a node cost is not finite.

        group and links: see Grid; both may be None. With init, classes and segments hold a start,
        whose segment ids are below the number of pixels.
        """
        cdef double value
        cdef Grid grid = make_grid(node, edge, offsets, shape)
        grid.forbids = forbids
        if links is not None:
            grid.group = &group[0]
            grid.links = &links[0, 0]
            grid.joined = joined
            grid.apart = links.shape[0] - joined
        self.solver.time_limit = time_limit
        with nogil:
            value = self.solver.amwc(grid, &partitionable[0], method, init, &classes[0],
                                     &segments[0])
        return value

    def amwc_graph(self, const float[:, ::1] node, const int32_t[:, ::1] edges,
                   const float[::1] weight, const uint8_t[::1] partitionable, int method,
                   double time_limit, int32_t[::1] classes, int32_t[::1] segments):
        """The same for any graph."""
        cdef double value
        self.solver.time_limit = time_limit
        with nogil:
            value = self.solver.amwc_graph(make_graph(node, edges, weight), &partitionable[0],
                                           method, &classes[0], &segments[0])
        return value

    def multiway(self, const float[:, ::1] node, const float[::1] edge,
                 const int32_t[:, ::1] offsets, const int32_t[::1] shape, const int32_t[::1] init,
                 int32_t[::1] classes, int32_t[::1] segments):
        """The same for a multiway cut; init may be None."""
        cdef double value
        cdef const int32_t* start = &init[0] if init is not None else NULL
        cdef Grid grid = make_grid(node, edge, offsets, shape)
        with nogil:
            value = self.solver.multiway(grid, start, &classes[0], &segments[0])
        return value


def objective_graph(const float[:, ::1] node, const int32_t[:, ::1] edges, const float[::1] weight,
                    const int32_t[::1] classes, const int32_t[::1] segments):
    """The same for any graph."""
    cdef double value
    with nogil:
        value = graph_objective(make_graph(node, edges, weight), &classes[0], &segments[0])
    return value


def join_pairs(const int32_t[:, ::1] pairs, int32_t[::1] group):
    """Joins the groups of the pixels of each pair.

    group (N,): in, for every pixel the pixel that stands for its group, itself at first, or -1 for
    none; out, the same, the first pixel of each group.
    """
    cdef Py_ssize_t i
    cdef int32_t p, q
    with nogil:
        for i in range(pairs.shape[0]):
            p = _root(&group[0], pairs[i, 0])
            q = _root(&group[0], pairs[i, 1])
            group[max(p, q)] = min(p, q)
        for i in range(group.shape[0]):
            if group[i] >= 0:
                group[i] = _root(&group[0], <int32_t>i)


cdef int32_t _root(int32_t* group, int32_t p) noexcept nogil:
    while group[p] != p:
        group[p] = group[group[p]]
        p = group[p]
    return p


def all_finite(const float[::1] values):
    """Whether a flat array holds neither NaN nor infinity."""
    cdef bint good
    if values.shape[0] == 0:
        return True
    with nogil:
        good = c_all_finite(&values[0], values.shape[0])
    return good


def objective(const float[:, ::1] node, const float[::1] edge, const int32_t[:, ::1] offsets,
              const int32_t[::1] shape, const int32_t[::1] classes, const int32_t[::1] segments,
              bint masked=False):
    """Objective of any labelling, in double precision; masked: pixels of label -1 take no part."""
    cdef double value
    cdef Grid grid = make_grid(node, edge, offsets, shape)
    with nogil:
        if masked:
            value = masked_objective(grid, &classes[0], &segments[0])
        else:
            value = grid_objective(grid, &classes[0], &segments[0])
    return value


# --- lower bound

cdef extern from "lower_bound.hpp" namespace "amwc" nogil:
    double grid_bound "amwc::lower_bound"(const Grid&, const uint8_t*, bint, const int32_t*,
                                          int (*)() noexcept nogil) except +
    double graph_bound "amwc::lower_bound"(const Graph&, const uint8_t*,
                                           int (*)() noexcept nogil) except +


def bound(const float[:, ::1] node, const float[::1] edge, const int32_t[:, ::1] offsets,
          const int32_t[::1] shape, const uint8_t[::1] partitionable, bint tight,
          const int32_t[::1] segments):
    """Lower bound on the optimum of a grid; segments of a solution that guides it, or None."""
    cdef double value
    cdef const int32_t* guide = &segments[0] if segments is not None else NULL
    cdef Grid grid = make_grid(node, edge, offsets, shape)
    with nogil:
        value = grid_bound(grid, &partitionable[0], tight, guide, interrupted)
    return value


def bound_graph(const float[:, ::1] node, const int32_t[:, ::1] edges, const float[::1] weight,
                const uint8_t[::1] partitionable):
    """Lower bound on the optimum of a graph."""
    cdef double value
    with nogil:
        value = graph_bound(make_graph(node, edges, weight), &partitionable[0], interrupted)
    return value


# --- refinement

cdef extern from "refine.hpp" namespace "amwc" nogil:
    void c_refine "amwc::refine_labels"(const Grid&, const int32_t*, const int32_t*, float, int,
                                        const int32_t*, int, int, int32_t*, int32_t*) except +


def refine(const float[:, ::1] node, const float[::1] edge, const int32_t[:, ::1] offsets,
           const int32_t[::1] shape, const int32_t[:, ::1] classes,
           const int32_t[:, ::1] segments, float gamma, int stride,
           const int32_t[::1] image_size, int32_t[:, ::1] out_classes,
           int32_t[:, ::1] out_segments):
    """Fills out_classes and out_segments, the labels of the pixels of the output."""
    cdef Grid grid = make_grid(node, edge, offsets, shape)
    with nogil:
        c_refine(grid, &classes[0, 0], &segments[0, 0], gamma, stride,
                 &image_size[0], <int>out_classes.shape[0], <int>out_classes.shape[1],
                 &out_classes[0, 0], &out_segments[0, 0])
