package state

import "sync"

// jobsPerTransaction bounds how many jobs of the queue share a transaction.
const jobsPerTransaction = 16

// Readers is a pool of goroutines that run read jobs, so that no lane waits for a page of the file (rule State1). A test
// runtime without goroutines calls Store.RunJob instead.
type Readers struct {
	store Store
	wg    sync.WaitGroup

	mu     sync.Mutex // held for a few instructions only
	wake   sync.Cond
	queue  []*ReadJob
	head   int
	closed bool
}

// NewReaders starts n goroutines that read from s. Close ends them.
func NewReaders(s Store, n int) *Readers {
	r := &Readers{store: s}
	r.wake.L = &r.mu
	for range max(n, 1) {
		r.wg.Go(r.loop)
	}
	return r
}

// Submit queues the job and returns. Done is called when it has been run; with ErrClosed, and by this goroutine, if the pool
// is closed.
func (r *Readers) Submit(job *ReadJob) {
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.queue = append(r.queue, job)
	}
	r.mu.Unlock()
	if closed {
		job.Err = ErrClosed
		job.done()
		return
	}
	r.wake.Signal()
}

// Len returns how many jobs wait.
func (r *Readers) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue) - r.head
}

// Close waits for the jobs that run, fails those that wait with ErrClosed, and ends the goroutines.
func (r *Readers) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wake.Broadcast()
	r.wg.Wait()
	r.mu.Lock()
	rest := r.queue[r.head:]
	r.queue, r.head = nil, 0
	r.mu.Unlock()
	for _, job := range rest {
		job.Err = ErrClosed
		job.done()
	}
}

func (j *ReadJob) done() {
	if j.Done != nil {
		j.Done(j)
	}
}

func (r *Readers) loop() {
	jobs := make([]*ReadJob, 0, jobsPerTransaction)
	for {
		jobs = r.take(jobs[:0])
		if len(jobs) == 0 {
			return
		}
		r.store.RunJobs(jobs)
		for _, job := range jobs {
			job.done()
		}
		clear(jobs)
	}
}

// take waits for jobs; none means that the pool was closed.
func (r *Readers) take(jobs []*ReadJob) []*ReadJob {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && r.head == len(r.queue) {
		r.wake.Wait()
	}
	if r.closed {
		return jobs
	}
	n := min(len(r.queue)-r.head, jobsPerTransaction)
	jobs = append(jobs, r.queue[r.head:r.head+n]...)
	clear(r.queue[r.head : r.head+n])
	if r.head += n; r.head == len(r.queue) {
		r.queue, r.head = r.queue[:0], 0
	} else if r.head >= 1024 && 2*r.head >= len(r.queue) {
		n := copy(r.queue, r.queue[r.head:])
		clear(r.queue[n:])
		r.queue, r.head = r.queue[:n], 0
	}
	return jobs
}
